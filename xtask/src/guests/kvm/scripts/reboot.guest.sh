synthetic_nic
await log_says Data path switched to VF
pings VF
# What to do next: end, or reboot.
read line
$line
