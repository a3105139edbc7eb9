synthetic_nic
await log_says Data path switched to VF
pings VF
kexec -l /next/vmlinuz --initrd=/next/initramfs --reuse-cmdline || echo MARK L2 failed kexec -l
echo MARK L2 goes on to the next kernel
# With its interfaces up.
kexec -e -x
echo MARK L2 failed kexec -e
