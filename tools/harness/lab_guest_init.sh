#!/bin/sh
# PID 1 of a lab guest: starts guestd's agent, again whenever it ends, and runs the commands of the control channel.
# On the kernel's command line: lab.interval=SECONDS between samples; or lab.sender=MILLISECONDS between counted ones,
# which tools/harness/lab_sender.py sends in the agent's place.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "$module"; done </modules
ip link set lo up
mkdir -p /dev/virtio-ports

program='-m guestd agent --interval 1'
for word in $(cat /proc/cmdline); do
  case $word in
    lab.interval=*) program="-m guestd agent --interval ${word#*=}" ;;
    lab.sender=*) program="/agent/lab_sender.py ${word#*=}" ;;
  esac
done

# What udev does elsewhere, for ports that are plugged in later, too.
name_ports() {
  for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name" && [ ! -e "/dev/virtio-ports/$name" ] &&
      ln -sf "/dev/${port##*/}" "/dev/virtio-ports/$name"
  done
}

# Without a process of its own: twenty guests that start one every half second keep two emulating cores busy.
mkfifo /run/never
pause() { read -r -t "$1" _ <>/run/never; }

# A port without a client on the host is always at its end: hence the pause.
control() {
  exec 3<>/dev/virtio-ports/org.guestd.lab
  while :; do
    while read -r line <&3; do
      sh -c "$line" >&3 2>&1 </dev/null
      echo "#status $?" >&3
    done
    pause 0.3
  done
}

agent() {
  while :; do
    # shellcheck disable=SC2086 # its words are the program's
    PYTHONPATH=/agent:/site python3.11 -S -B $program </dev/null
    sleep 0.2
  done
}

name_ports 2>/dev/null
echo "lab: the guest is up after $(cut -d' ' -f1 /proc/uptime) s"
agent >/dev/console 2>&1 &
control >/dev/console 2>&1 &
while :; do
  pause 0.5
  name_ports 2>/dev/null
done
