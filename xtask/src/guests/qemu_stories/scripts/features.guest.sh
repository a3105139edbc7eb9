reaches() { await ping -q -c 1 -W 2 "$1"; }
# Five pings of 64 and five of so many bytes, all of which are answered.
pings() { none_lost -c 5 -i 0.2 "$1" && none_lost -c 5 -i 0.2 -s "$2" "$1"; }
silent() { ! ping -q -c 3 -W 1 "$1"; }

# The iavf of Linux 6.1 waits for its own reset with the lock held that the reset needs: it says EBUSY after 5 s, and its
# MTU changes all the same.
mtu() {
    ip link set eth0 mtu $1 || case $(uname -r) in 6.1.*) ;; *) return 1 ;; esac
    says /sys/class/net/eth0/mtu $1 && await sends eth0
}

vlan() { # id, address
    ip link add link eth0 name eth0.$1 type vlan id $1 && ip addr add $2/24 dev eth0.$1 && ip link set eth0.$1 up &&
        await sends eth0.$1
}

reaches6() { await ping6 -q -c 1 -W 2 "$1"; }
silent6() { ! ping6 -q -c 2 -W 1 "$1"; }
usable() { ip -6 addr show dev eth0 | grep "$1/" | grep -qv tentative; }
takes() { ip -6 addr add "$1/64" dev eth0 && await usable "$1"; }

promiscuous() { ip link set eth0 promisc $1; sleep 1; }
# Twenty pings to a station that is not there, without asking for its address.
silent_station() { arp -s 10.77.0.50 02:00:00:00:00:99 && ! ping -q -c 20 -i 0.1 -W 1 10.77.0.50; }

keeps_address() {
    own=$(cat /sys/class/net/eth0/address)
    ! ip link set eth0 address "$1" && says /sys/class/net/eth0/address "$own"
}
takes_address() { ip link set eth0 address "$1" && says /sys/class/net/eth0/address "$1"; }
