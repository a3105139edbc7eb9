lab_with_nic
stack set-adapter web net0 --vlan 7 || echo MARK failed vlan
start_guest --memory 384
await said MARK L2 talked synthetic
weigh 100
await said MARK L2 talked VF
# What must not leave was sent, on both paths, and dropped.
clearway switch --directory /tmp/switch show | grep -q '1 with a foreign source address, 1 in a VLAN' ||
    echo MARK failed the switch has not dropped what it must
nic=$(clearway nic --directory /tmp/nic show)
[ "$(echo "$nic" | awk '$1 == "VF" { print $NF }')" = 2 ] || echo "MARK failed the NIC has not dropped what it must: $nic"
type_in done
wait $guest
kill $adapter
wait $adapter
echo MARK capture
xxd -p /tmp/uplink.pcap
echo MARK captured
logs
