synthetic_nic
await log_says Data path switched to VF
pings VF again
