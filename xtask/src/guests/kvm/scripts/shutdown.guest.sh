for service in Shutdown Heartbeat TimeSync; do await log_says $service IC version; done
dmesg | grep 'IC version'
cat /sys/class/ptp/*/clock_name
mkdir -p /sbin
{ echo '#!/bin/sh'; echo 'echo MARK L2 was asked to shut down > /dev/console'; echo 'poweroff -f'; } > /sbin/poweroff
chmod +x /sbin/poweroff
echo MARK L2 waits
while :; do sleep 1000; done
