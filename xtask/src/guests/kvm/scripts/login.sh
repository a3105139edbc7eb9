REBOOT=
dd if=/dev/zero of=/tmp/root.raw bs=1M count=16 2> /tmp/dd
mke2fs -F /tmp/root.raw > /tmp/mke2fs
mkdir -p /mnt
mount -t ext4 -o loop /tmp/root.raw /mnt || echo MARK failed no file system
mkdir /mnt/bin /mnt/dev /mnt/proc /mnt/etc
cp /bin/busybox /mnt/bin/busybox
echo root::0:0:root:/:/bin/sh > /mnt/etc/passwd
cat > /mnt/init <<'END'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
while :; do getty -L 115200 ttyS0 vt100; done
END
cat > /mnt/etc/profile <<'END'
echo life >> /lives
sync
echo "MARK L2 logged in, life $(wc -l < /lives), on $(grep -o '/dev/vda / ext.' /proc/mounts)"
END
chmod 755 /mnt/init
umount /mnt

start_guest --memory 256 --disk /tmp/root.raw
await said login:
type_in root
await said logged in, life 1
: > /tmp/console
type_in reboot -f
await said login:
type_in root
await said logged in, life 2
type_in poweroff -f
wait $guest
mount -t ext4 -o loop /tmp/root.raw /mnt || echo MARK failed no file system
echo "MARK $(wc -l < /mnt/lives) lives are on the disk"
