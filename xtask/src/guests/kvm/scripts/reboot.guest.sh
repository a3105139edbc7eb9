synthetic_nic
await log_says Data path switched to VF
pings VF
# Its kernel closes VMBus, and starts anew a second later.
crash() {
    echo 1 > /proc/sys/kernel/panic
    echo c > /proc/sysrq-trigger
}
# What to do next: end, reboot or crash.
read line
$line
