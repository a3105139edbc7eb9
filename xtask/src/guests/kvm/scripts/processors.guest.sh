synthetic_nic
await log_says Data path switched to VF
pings VF
echo MARK L2 $(nproc) processors, $(ls -d /sys/class/net/eth0/device/channels/* | wc -l) channels
grep -E 'iavf|Hyper-V|HVS|Hypervisor callback' /proc/interrupts
# Interrupts of the VF go to the other processor, which goes away and comes back.
irq=$(grep iavf /proc/interrupts | tail -n 1 | cut -d: -f1 | tr -d ' ')
echo 2 > /proc/irq/$irq/smp_affinity || echo MARK L2 failed smp_affinity
pings with interrupts on processor 1
echo 1 > /proc/irq/$irq/smp_affinity
pings with interrupts on processor 0
