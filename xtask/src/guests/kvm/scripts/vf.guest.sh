synthetic_nic
pings synthetic
await log_says Data path switched to VF
dmesg | grep 'Data path switched to VF'
pings VF
ping -q -i 0.2 10.78.0.1 > /tmp/ping &
echo MARK L2 under traffic
read line
kill -INT $!
wait
tail -n 1 /tmp/ping
grep -q ' 0 packets received' /tmp/ping && echo MARK L2 failed no pings
every_echo && echo MARK L2 lost nothing || echo "MARK L2 failed pings were lost or doubled: $(unanswered) unanswered"
dmesg | grep 'Data path switched' | tail -n 4
grep iavf /proc/interrupts
