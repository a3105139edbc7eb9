# What eth0 has received by its VF.
vf_received() { ethtool -S eth0 | awk '$1 == "vf_rx_packets:" { print $2 }'; }
# Pings, and the VF has carried them.
by_vf() {
    before=$(vf_received)
    pings "$@"
    received=$(($(vf_received) - before))
    [ $received -ge 10 ] || echo "MARK L2 failed the VF has received $received of 10: $*"
}
# hv_netvsc closes its channel and opens it again, and does not ask for the VF again: it takes it for granted.
# The iavf of Linux 6.1 waits for its own reset with the lock held that the reset needs: it says EBUSY after 5 s, its MTU
# changes all the same, and so does eth0's the next time.
set_mtu() {
    ip link set eth0 mtu $1 && return
    case $(uname -r) in 6.1.*) ip link set eth0 mtu $1 ;; *) return 1 ;; esac
}
mtu() {
    set_mtu $1 || echo MARK L2 failed mtu $1
    vf_mtu=$(cat /sys/class/net/eth1/mtu)
    [ "$vf_mtu" = $1 ] || echo "MARK L2 failed the VF's MTU is $vf_mtu"
    # iavf resets itself.
    await ping -q -c 1 -W 2 10.78.0.1
    forgive
    by_vf at MTU $1
}
synthetic_nic
await log_says Data path switched to VF
by_vf VF
mtu 1200
mtu 1500
