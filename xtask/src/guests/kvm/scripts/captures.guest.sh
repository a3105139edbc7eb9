# Whatever is sent is for a peer beyond the physical port, which never answers.
PEER=02:00:00:00:00:99
# An interface and the subnet of it that the peer is in.
subnet() {
    ip addr add 10.78.$2.2/24 dev $1
    ip link set $1 up
    arp -i $1 -s 10.78.$2.9 $PEER || echo MARK L2 failed arp $1
}
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
await test -e /sys/class/net/eth0
subnet eth0 0
ip link add link eth0 name tagged type vlan id 5 || echo MARK L2 failed vlan
ip link add link eth0 name spoofing address 02:00:00:00:00:66 type macvlan || echo MARK L2 failed macvlan
subnet tagged 5
subnet spoofing 6
# A ping of this size says which path the rest is on.
talk() {
    ping -q -c 1 -W 1 -s $1 10.78.0.9
    ping -q -c 1 -W 1 -s 1472 10.78.0.9
    nslookup name 10.78.0.9
    nc -w 2 10.78.0.9 80 < /dev/null
    ping -q -c 1 -W 1 10.78.5.9
    ping -q -c 1 -W 1 10.78.6.9
} > /dev/null 2>&1
talk 701
echo MARK L2 talked synthetic
await log_says Data path switched to VF
on_vf() { [ "$(cat /sys/class/net/eth1/carrier)" = 1 ]; }
await on_vf
talk 702
vf_has_sent() { [ "$(cat /sys/class/net/eth1/statistics/tx_packets)" -gt 4 ]; }
await vf_has_sent && echo MARK L2 talked VF
# Until the host has looked.
read line
