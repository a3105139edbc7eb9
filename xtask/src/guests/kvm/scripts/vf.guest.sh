synthetic_nic
pings synthetic
await log_says Data path switched to VF
dmesg | grep 'Data path switched to VF'
pings VF
# Ping after ping, each series to its last answer.
traffic() { while [ ! -e /tmp/enough ]; do ping -c 10 -i 0.2 -W 60 10.78.0.1 >> /tmp/pings; done; }
traffic &
echo MARK L2 under traffic
read line
touch /tmp/enough
wait
grep 'packet loss' /tmp/pings | sort | uniq -c
grep 'packet loss' /tmp/pings | grep -v ' 0% packet loss' > /tmp/lost || grep DUP /tmp/pings > /tmp/lost \
    && echo MARK L2 failed pings were lost or doubled || echo MARK L2 lost nothing
dmesg | grep 'Data path switched' | tail -n 4
grep iavf /proc/interrupts
