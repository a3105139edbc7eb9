synthetic_nic
await log_says Data path switched to VF
pings VF
cat /sys/class/net/eth1/device/reset_method
round=0
while [ $round -lt 5 ]; do
    round=$((round + 1))
    dmesg -c > /dev/null
    echo 1 > /sys/class/net/eth1/device/reset || echo MARK L2 failed reset $round
    # The driver finds out by itself; what it has posted until then is gone.
    await log_says Hardware reset detected
    await ping -q -c 1 -W 2 10.78.0.1
    forgive
    pings VF after reset $round
    dmesg | grep 'PF returned error' && echo MARK L2 failed requests after reset $round
done
