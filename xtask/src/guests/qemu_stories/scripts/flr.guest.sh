flood() {
    while :; do ping -q -A -s 1000 -w 5 $PEER; usleep 50000; done > /dev/null 2>&1 &
    flood=$!
}
calm() { kill $flood; killall ping; sleep 1; }
reset() { echo 1 > /sys/class/net/eth0/device/reset; }
# The driver finds out by itself that its queues are gone.
back() { await sends eth0 && await ping -q -c 1 -W 2 $PEER; }
reset_one() { reset && back; }
# An iavf whose device is reset while it takes it up again gives up, until its interface is brought up anew.
reset_many() {
    n=0
    while [ $n -lt $1 ]; do n=$((n + 1)); reset || return 1; done
    sleep 5
    ip link set eth0 down
    ip link set eth0 up
    back
}
all_answered() { none_lost -c 50 -i 0.05 $PEER && none_lost -c 50 -i 0.05 -s 1400 $PEER; }
