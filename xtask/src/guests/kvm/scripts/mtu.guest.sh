synthetic_nic
await log_says Data path switched to VF
pings VF
dmesg -c > /dev/null
ip link set eth0 mtu 1200 || echo MARK L2 failed mtu
await log_says Data path switched to VF
pings at MTU 1200
dmesg -c > /dev/null
ip link set eth0 mtu 1500 || echo MARK L2 failed mtu
await log_says Data path switched to VF
pings at MTU 1500
