# What scripts of L2 have at hand.

# Seconds since it booted.
now() { cut -d. -f1 /proc/uptime; }
# Waits until a command succeeds, three minutes at most.
await() {
    late=$(($(now) + 180))
    until "$@" > /dev/null 2>&1; do
        [ "$(now)" -gt $late ] && { dmesg; echo "MARK L2 failed this did not come: $*"; return 1; }
        usleep 300000
    done
}

synthetic_nic() {
    await test -e /sys/class/net/eth0
    ip addr add 10.78.0.2/24 dev eth0
    ip link set eth0 up
}

log_says() { dmesg | grep -q "$*"; }
# Echo requests sent and answers received since the guest booted, as its kernel counts them. Whoever only asks `ping`
# takes for lost what is late, which on an emulated machine may be seconds.
echoes() {
    awk '/^Icmp:/ { if (!fields) fields = split($0, name); else for (i = 1; i <= fields; i++) count[name[i]] = $i }
        END { print count["OutEchos"], count["InEchoReps"] }' /proc/net/snmp
}
lost=0
all_answered() {
    set -- $(echoes)
    [ "$1" -gt 0 ] && [ $(($1 - lost)) = "$2" ]
}
# What was lost so far may be lost.
forgive() {
    sleep 5
    set -- $(echoes)
    lost=$(($1 - $2))
}
# Waits for what is late, a minute at most; `await` would only say that something is missing.
every_echo() {
    tries=0
    until all_answered; do
        tries=$((tries + 1))
        [ $tries -gt 60 ] && return 1
        sleep 1
    done
}
# Five pings of each size to the host, all of them answered, and once.
pings() {
    ping -q -c 5 10.78.0.1 > /tmp/ping
    ping -q -c 5 -s 1400 10.78.0.1 >> /tmp/ping
    tail -n 1 /tmp/ping
    every_echo && echo "MARK L2 pinged $*" || echo "MARK L2 failed pings $*: sent and answered $(echoes)"
}
