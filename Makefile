# Every target is a verb of devstack/, which runs without make too: python3 -m devstack run
PYTHON ?= /usr/bin/python3
VERBS := help run stop status setup test test-unit test-slow test-hosts test-vbox test-xen test-fresh coverage coverage-pure check format lock bench-worker bench-master

.PHONY: $(VERBS)
$(VERBS): # `help` is the first, and so the default
	@$(PYTHON) -m devstack $@ $(ARGS)
