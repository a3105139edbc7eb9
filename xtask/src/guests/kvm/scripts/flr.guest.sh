carrier() { [ "$(cat /sys/class/net/eth1/carrier)" = 1 ]; }
synthetic_nic
await log_says Data path switched to VF
pings VF
cat /sys/class/net/eth1/device/reset_method
round=0
while [ $round -lt 5 ]; do
    round=$((round + 1))
    dmesg -c > /dev/null
    echo 1 > /sys/class/net/eth1/device/reset || echo MARK L2 failed reset $round
    await carrier
    pings VF after reset $round
done
