#!/bin/sh
# Runs a command on a machine of its own: sandbox.sh FOLDER KIND COMMAND...
#
# The command sees no process, VM, port, socket, log or temporary file of this machine, and nothing of its own outlives
# it: processes end with their PID namespace, files and mounts with their mount namespace, even after a SIGKILL.
# FOLDER is the clone, which stays visible wherever it lies. KIND: "offline" has a loopback and no other network, "online"
# has this machine's. Needs root. Nests.
set -eu

if [ "${1}" != --inside ]; then
  [ "$2" = online ] || net=--net
  # `unshare` ends with its caller, and everything in the new PID namespace ends with `unshare`.
  exec setpriv --pdeathsig KILL \
    unshare --mount --propagation private --pid --mount-proc --fork --kill-child --ipc --uts ${net:-} \
    /bin/sh "$0" --inside "$@"
fi

shift
folder=$1
kind=$2
shift 2
exec 3<"$folder" # kept in hand: the clone may lie below a folder that is covered now

# Also a new /sys: without the machine's cgroups, in which VMs of equal names would meet.
umount --recursive --lazy /sys
mount -t sysfs sysfs /sys
if [ "$kind" = offline ]; then
  ip link set lo up
else
  resolver=$(cat /etc/resolv.conf 2>/dev/null || :)
fi

for place in /tmp /var/tmp /run /dev/shm /etc/libvirt/qemu /var/lib/libvirt /var/log/libvirt; do
  [ ! -d "$place" ] || mount -t tmpfs -o "mode=$(stat -c %a "$place")" tests "$place"
done
mkdir /run/lock
if [ "$kind" = online ] && ! [ -e /etc/resolv.conf ]; then # a link into /run
  mkdir -p "$(dirname "$(readlink -m /etc/resolv.conf)")"
  echo "$resolver" >"$(readlink -m /etc/resolv.conf)"
fi
if ! [ -d "$folder" ]; then
  mkdir -p "$folder"
  mount --no-canonicalize --bind /proc/self/fd/3 "$folder" # else mount follows the link to the covered path itself
fi
exec 3<&-
cd "$folder"
unset TMPDIR
unset PYTHONDONTWRITEBYTECODE # or each process that tests start compiles the project once more
"$@" # not `exec`: this shell is process 1 here, and reaps orphans
