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
# What was unanswered when last looked at, and may stay so.
lost=0
# Whether all but that is answered, and once, a minute later at the latest.
every_echo() {
    tries=0
    until [ "$(unanswered)" = "$lost" ]; do
        tries=$((tries + 1))
        [ $tries -gt 60 ] && return 1
        sleep 1
    done
}
# What was lost so far may be lost.
forgive() {
    sleep 5
    lost=$(unanswered)
}
# Five pings of each size to the host, all of them answered, and once.
pings() {
    { ping -q -c 5 10.78.0.1 && ping -q -c 5 -s 1400 10.78.0.1; } > /tmp/ping || echo MARK L2 failed no pings $*
    tail -n 1 /tmp/ping
    every_echo && echo "MARK L2 pinged $*" || echo "MARK L2 failed pings $*: $(unanswered) unanswered, not $lost"
}
