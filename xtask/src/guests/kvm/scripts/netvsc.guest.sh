synthetic_nic
echo MARK L2 driver $(basename $(readlink /sys/class/net/eth0/device/driver)) $(cat /sys/class/net/eth0/address)
pings synthetic
