synthetic_nic
await log_says Data path switched to VF
pings VF
vf=$(basename $(readlink /sys/class/net/eth1/device))
dmesg -c > /dev/null
echo $vf > /sys/bus/pci/drivers/iavf/unbind
await log_says Data path switched from VF
pings "without the VF's driver"
dmesg -c > /dev/null
echo $vf > /sys/bus/pci/drivers/iavf/bind
await log_says Data path switched to VF
pings VF again
