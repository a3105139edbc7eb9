synthetic_nic
await log_says Data path switched to VF
pings VF
dmesg -c > /dev/null
rmmod pci_hyperv || echo MARK L2 failed rmmod pci_hyperv
await log_says Data path switched from VF
pings without pci_hyperv
insmod /modules/pci_hyperv.ko
await log_says Data path switched to VF
pings VF again
dmesg -c > /dev/null
rmmod hv_netvsc || echo MARK L2 failed rmmod hv_netvsc
insmod /modules/hv_netvsc.ko
synthetic_nic
await log_says Data path switched to VF
pings after hv_netvsc
