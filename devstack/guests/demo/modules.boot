nls_cp437
nls_ascii
fat
vfat
button
evdev
pvpanic
pvpanic-mmio
