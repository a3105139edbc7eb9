synthetic_nic
await log_says Data path switched to VF
pings VF
await log_says Data path switched from VF
pings without the VF
twice() { [ "$(dmesg | grep -c 'Data path switched to VF')" = 2 ]; }
await twice
pings another VF
