# What scripts of L1 have at hand.

# Seconds since it booted.
now() { cut -d. -f1 /proc/uptime; }
# Waits until a command succeeds, 400 s at most.
await() {
    late=$(($(now) + 400))
    until "$@" > /tmp/awaited 2>&1; do
        [ "$(now)" -gt $late ] && { cat /tmp/awaited; echo "MARK failed this did not come: $*"; return 1; }
        usleep 300000
    done
}

# Starts a switch with this uplink and an interface of the host's, 10.78.0.1, and a stack for the VM "web" whose adapter
# net0 is on it. What is on standard input goes into the stack's configuration.
lab() {
    clearway switch run --directory /tmp/switch --name lab --uplink "$1" --host-interface host0 > /tmp/switch.log 2>&1 &
    {
        cat
        echo '[[vm]]'
        echo 'name = "web"'
        echo 'socket = "/tmp/web.sock"'
        echo '[[vm.adapter]]'
        echo 'name = "net0"'
        echo 'mac = "00:15:5D:00:00:01"'
        echo 'switch = "lab"'
        echo 'iov-weight = 0'
        echo "channels = ${CHANNELS:-1}"
    } > /tmp/stack.toml
    clearway stack run --config /tmp/stack.toml --directory /tmp/stack > /tmp/stack.log 2>&1 &
    await test -e /sys/class/net/host0
    ip addr add 10.78.0.1/24 dev host0 && ip link set host0 up || echo MARK failed no host interface
}

adapter() {
    clearway adapter --directory /tmp/nic --vfs 2 --uplink ${UPLINK:-pcap:,/tmp/uplink.pcap} > /tmp/adapter.log 2>&1 &
    adapter=$!
    await test -S /tmp/nic/pf.sock
}

# The same with an SR-IOV adapter beneath the switch.
lab_with_nic() {
    adapter
    lab adapter:/tmp/nic <<'END'
[[nic]]
name = "nic0"
directory = "/tmp/nic"
[[switch]]
name = "lab"
socket = "/tmp/switch/control.sock"
nic = "nic0"
iov = true
END
}

# Boots the guest beside this script. Its console is also in /tmp/console; `type_in` types a line there.
start_guest() {
    mkfifo /tmp/keyboard
    exec 3<> /tmp/keyboard
    : > /tmp/console
    { guest --worker /tmp/web.sock "$@" < /tmp/keyboard || echo "MARK failed vm run says $?"; } | tee /tmp/console &
    guest=$!
}
type_in() { echo "$*" >&3; }
said() { grep -q "$*" /tmp/console; }

# Takes what the guest sends over one TCP connection; nc would close it if it had nothing to read itself.
take_stream() {
    sleep 100000 | nc -l -p 5001 > /tmp/received &
    receiver=$!
}
# After the guest's end: whether that is what it says it has sent.
compare_stream() {
    kill $receiver
    sent=$(tr -d '\r' < /tmp/console | sed -n 's/^MARK L2 sent //p')
    length=$(wc -c < /tmp/received)
    [ "$(md5sum < /tmp/received)" = "$sent" ] && [ $length -gt 0 ] && echo MARK the stream is whole, $length bytes ||
        echo MARK failed the stream is not what the guest sent: $length bytes
}

stack() { clearway stack --directory /tmp/stack "$@"; }
weigh() { stack set-adapter web net0 --iov-weight "$1" > /dev/null || echo "MARK failed IovWeight $1"; }
# The stack's state of the adapter: Synthetic, Active, ...
is() { stack status | grep -q "state $1:"; }

logs() {
    clearway switch --directory /tmp/switch show
    stack status
    cat /tmp/adapter.log /tmp/switch.log /tmp/stack.log
}
