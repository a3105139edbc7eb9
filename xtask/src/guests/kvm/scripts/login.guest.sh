await test -b /dev/vda
mkdir -p /root
mount -t ext4 /dev/vda /root || echo MARK L2 failed no root
exec switch_root /root /init
