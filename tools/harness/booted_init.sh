#!/bin/sh
# The first process of tools/harness/booted.py's namespaces: makes ROOT a machine's root, and becomes its systemd.
#   booted_init.sh ROOT [SOURCE:TARGET ...]    TARGET is within ROOT; all are read-only but those that begin with /srv
set -eu
root=$1 && shift
mount --bind "$root" "$root"
cd "$root"
mount --rbind -o ro /usr usr
mount -o remount,ro,bind usr
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys # the settings of the kernel are everybody's
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
for node in null zero full random urandom tty; do
  touch dev/$node
  mount --bind /dev/$node dev/$node
done
ln -s pts/ptmx dev/ptmx # a unit with PrivateDevices= is given one like it
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
for pair in "$@"; do
  target=${pair#*:}
  mkdir -p "./$target"
  mount --bind "${pair%%:*}" "./$target"
  case $target in /srv*) ;; *) mount -o remount,ro,bind "./$target" ;; esac
done
hostname booted
mkdir -p .old
pivot_root . .old
cd /
umount -l .old
# As on a host: credentials are mounted in a namespace of their own, and come from there to all others.
mount --make-rshared /
exec env -i container=booted PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
  /usr/lib/systemd/systemd --system --unit=booted.target --show-status=0 </dev/null
