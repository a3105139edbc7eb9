{ bare_guest --test-threads=1 --nocapture 2>&1 || echo "MARK failed the tests say $?"; } | tee /tmp/tests
grep -q skipped: /tmp/tests && echo MARK failed this KVM is not enough for the tests
