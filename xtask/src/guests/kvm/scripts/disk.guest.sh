await test -b /dev/vda
await test -b /dev/vdb
cd /sys/block
echo "MARK L2 disks of $(cat vda/size) and $(cat vdb/size) sectors, read-only $(cat vda/ro) $(cat vdb/ro), $(cat vda/serial)"
cd /
[ "$(head -n 1 /dev/vda)" = 'known content' ] || echo MARK L2 failed vda begins otherwise
dd if=/dev/vdb bs=64k 2> /dev/null | head -c 9 | grep 'only read' || echo MARK L2 failed vdb begins otherwise
echo MARK L2 read

dd if=/dev/urandom of=/tmp/block bs=64k count=16 2> /dev/null
dd if=/tmp/block of=/dev/vda bs=64k seek=16 conv=fsync 2> /dev/null || echo MARK L2 failed writing
reads_back() { [ "$(dd if=/dev/vda bs=64k skip=16 count=16 2> /dev/null | md5sum)" = "$(md5sum < /tmp/block)" ]; }
# The device again, by a driver that has reset it; nothing is cached then.
rmmod virtio_blk && insmod /modules/virtio_blk.ko || echo MARK L2 failed the driver cannot be loaded again
await test -b /dev/vda
reads_back || echo MARK L2 failed it reads otherwise
dd if=/dev/zero of=/dev/vdb bs=512 count=1 2> /dev/null && echo MARK L2 failed vdb is written
grep virtio /proc/interrupts
echo "MARK L2 wrote $(md5sum < /tmp/block)"
# Until the host has looked.
read line
