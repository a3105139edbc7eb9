synthetic_nic
pings synthetic
await log_says Data path switched to VF
dmesg | grep 'Data path switched to VF'
pings VF
# Linux uses a VF as soon as it has a carrier, and gives it its queueing discipline a moment later: what it sends meanwhile
# its own kernel drops, by this function, and no host ever sees it. On a busy machine the moment is long.
mount -t tracefs tracefs /sys/kernel/tracing
echo noop_enqueue > /sys/kernel/tracing/set_ftrace_filter
echo function > /sys/kernel/tracing/current_tracer
own_drops() { grep -c ' ping-.*noop_enqueue' /sys/kernel/tracing/trace; }
# A TCP connection that lasts until all is over.
stream() {
    number=0
    until [ -e /tmp/over ]; do
        number=$((number + 1))
        echo "This is line $number."
        usleep 100000
    done
}
stream | tee /tmp/sent | nc 10.78.0.1 5001 &
connection=$!
ping -q -i 0.2 10.78.0.1 > /tmp/ping &
pings=$!
echo MARK L2 under traffic
read line
kill -INT $pings
kill -0 $connection || echo MARK L2 failed the connection has ended
: > /tmp/over
wait
echo MARK L2 sent "$(md5sum < /tmp/sent)"
tail -n 1 /tmp/ping
grep -q ' 0 packets received' /tmp/ping && echo MARK L2 failed no pings
lost=$(own_drops)
every_echo && echo "MARK L2 lost nothing but $lost that its own kernel dropped" || echo "MARK L2 failed pings were lost or doubled: $(unanswered) unanswered, of which its own kernel dropped $lost"
dmesg | grep 'Data path switched' | tail -n 4
grep iavf /proc/interrupts
