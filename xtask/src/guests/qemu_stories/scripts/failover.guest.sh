# A guest whose virtio-net is joined with a VF that comes and goes.

until_it_is() { # file, value
    n=0
    until [ "$(cat $1 2> /dev/null)" = "$2" ]; do
        n=$((n + 1))
        [ $n -gt 2400 ] && { dmesg; echo "MARK failed $1 is not $2"; return 1; }
        usleep 100000
    done
}
until_it_is /sys/class/net/eth0/addr_len 6
ip addr add 10.77.0.1/24 dev eth0
ip link set eth0 up
none_lost -c 5 10.77.0.2 && echo MARK pinged synthetic || echo MARK failed pings on the synthetic path
until_it_is /sys/class/net/eth2/carrier 1
echo MARK VF $(basename $(readlink /sys/class/net/eth2/device/driver))
before=$(cat /sys/class/net/eth2/statistics/tx_packets)
none_lost -c 5 10.77.0.2 || echo MARK failed pings on the VF
# iavf counts every now and then.
sent() { echo $(($(cat /sys/class/net/eth2/statistics/tx_packets) - before)); }
n=0
until [ $(sent) -ge 5 ] || [ $n -gt 60 ]; do n=$((n + 1)); sleep 1; done
[ $(sent) -ge 5 ] && echo MARK pinged VF || echo MARK failed the VF has sent $(sent) of 5 pings
# Linux uses a VF as soon as it has a carrier, and gives it its queueing discipline a moment later: what it sends meanwhile
# its own kernel drops, by this function, and no host ever sees it.
mount -t tracefs tracefs /sys/kernel/tracing
echo noop_enqueue > /sys/kernel/tracing/set_ftrace_filter
echo function > /sys/kernel/tracing/current_tracer
# What comes by the standby while it has a primary, net_failover drops.
standby=$(cat /sys/class/net/eth1/statistics/rx_nohandler)
echo > /tmp/sent
stream() { number=0; until [ -e /tmp/over ]; do number=$((number + 1)); echo "This is line $number."; usleep 100000; done; }
stream | tee /tmp/sent | nc 10.77.0.2 5001 &
connection=$!
before=$(unanswered)
ping -q -i 0.2 10.77.0.2 > /tmp/ping &
pings=$!
echo MARK under traffic
read line < /dev/ttyS0
kill -INT $pings
kill -0 $connection || echo MARK failed the connection has ended
: > /tmp/over
wait
lost=$(($(unanswered) - before))
own=$(grep -c ' ping-.*noop_enqueue' /sys/kernel/tracing/trace)
tail -n 4 /tmp/ping
echo MARK sent "$(md5sum < /tmp/sent | cut -d' ' -f1)"
echo MARK lost $lost own $own standby $(($(cat /sys/class/net/eth1/statistics/rx_nohandler) - standby))
dmesg | grep -E 'failover (primary|standby)' | tail -n 4
dmesg | grep -E 'WARNING:|BUG:|Call Trace' && echo MARK failed errors in the log
