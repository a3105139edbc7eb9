dd if=/dev/zero of=/tmp/disk.raw bs=1M count=8 2> /tmp/dd
echo known content | dd of=/tmp/disk.raw conv=notrunc 2> /tmp/dd
yes only read | head -c 1048576 > /tmp/read-only.raw
before=$(md5sum < /tmp/read-only.raw)
start_guest --memory 256 --disk /tmp/disk.raw --disk /tmp/read-only.raw,ro
await said MARK L2 wrote
clearway vm run other --kvm --kernel /guest/vmlinux --disk /tmp/disk.raw 2> /tmp/other && echo MARK failed two VMs have one disk
cat /tmp/other
type_in go on
wait $guest
after=$(dd if=/tmp/disk.raw bs=64k skip=16 count=16 2> /tmp/dd | md5sum)
said "MARK L2 wrote $after" || echo "MARK failed the image has $after"
[ "$(head -n 1 /tmp/disk.raw)" = 'known content' ] || echo MARK failed the image has another beginning
[ "$(md5sum < /tmp/read-only.raw)" = "$before" ] || echo MARK failed what is only read has been written
echo MARK the image has what the guest wrote
