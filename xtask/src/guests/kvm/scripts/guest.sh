# What scripts of L2 have at hand.

# Waits until a command succeeds, five minutes at most.
await() {
    tries=0
    until "$@" > /dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -gt 3000 ] && { dmesg; echo "MARK L2 failed this did not come: $*"; return 1; }
        usleep 100000
    done
}

synthetic_nic() {
    await test -e /sys/class/net/eth0
    ip addr add 10.78.0.2/24 dev eth0
    ip link set eth0 up
}

log_says() { dmesg | grep -q "$*"; }
none_lost() { ping -W 60 "$@" > /tmp/ping; tail -n 3 /tmp/ping; grep -q ' 0% packet loss' /tmp/ping; }
# Five pings of each size to the host.
pings() {
    none_lost -c 5 10.78.0.1 && none_lost -c 5 -s 1400 10.78.0.1 && echo "MARK L2 pinged $*" || {
        dmesg
        echo "MARK L2 failed pings $*"
    }
}
