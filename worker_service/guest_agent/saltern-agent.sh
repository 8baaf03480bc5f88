#!/bin/sh
# Saltern's agent: installs the software of this guest with the guest's package manager, and reports each step as one
# line of JSON to a file on the worker. The way there is the first that exists of the virtio-serial port
# org.saltern.agent.0, the second serial port (Xen, VirtualBox), and the second console of a Xen guest.
#
# It needs a POSIX shell and the usual tools of any Linux. It may run at any time and repeatedly: installed software is
# only reported. cloud-init runs it at each boot until it has finished; an image may also run it by itself.
#
#   SALTERN_AGENT_PORT    file for the reports instead of the port
#   SALTERN_AGENT_STATE   folder of soft_list, one entry per line: `nginx`, or `nginx=1.22*` for a version
#   SALTERN_AGENT_LOCK    folder that serves as the lock of the running agent
#   SALTERN_AGENT_SEEDS   devices that may hold a seed
#   SALTERN_AGENT_ROOT    folder in place of / that has dev and sys
#   SALTERN_AGENT_UNIT_S  seconds; all pauses are multiples of it
#   SALTERN_AGENT_BEAT_S  seconds between two reports that the package manager prints new lines
set -u

name=org.saltern.agent.0
port=${SALTERN_AGENT_PORT:-}
state=${SALTERN_AGENT_STATE:-/var/lib/saltern-agent}
lock=${SALTERN_AGENT_LOCK:-/run/saltern-agent.lock}
root=${SALTERN_AGENT_ROOT:-}
seeds=${SALTERN_AGENT_SEEDS-/dev/disk/by-label/cidata /dev/disk/by-label/CIDATA /dev/sr0 /dev/sr1 /dev/xvde}
unit=${SALTERN_AGENT_UNIT_S:-1}
beat_s=${SALTERN_AGENT_BEAT_S:-60}
manager=
refreshed=no

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
LC_ALL=C
DEBIAN_FRONTEND=noninteractive
NEEDRESTART_SUSPEND=1
export PATH LC_ALL DEBIAN_FRONTEND NEEDRESTART_SUSPEND

# Reports

find_port() { # sets port; the port appears a moment after the kernel has found it
    tries=0
    while [ -z "$port" ]; do
        [ ! -e "$root/dev/virtio-ports/$name" ] || port=$root/dev/virtio-ports/$name
        for entry in "$root"/sys/class/virtio-ports/*; do
            if [ "$(cat "$entry/name" 2>/dev/null)" = "$name" ] && [ -c "$root/dev/${entry##*/}" ]; then
                port=$root/dev/${entry##*/}
            fi
        done
        [ -n "$port" ] || find_serial
        [ -z "$port" ] || return 0
        [ "$tries" -lt 30 ] || return 1
        tries=$((tries + 1))
        sleep "$unit"
    done
}

find_serial() { # sets port where the hypervisor has no virtio-serial: elsewhere another program may use the device
    case $(cat "$root/sys/class/dmi/id/product_name" 2>/dev/null) in
    'HVM domU' | VirtualBox)
        kind=$(cat "$root/sys/class/tty/ttyS1/type" 2>/dev/null)
        if [ "${kind:-0}" != 0 ] && [ -c "$root/dev/ttyS1" ]; then # 0: the name of a port that is not there
            port=$root/dev/ttyS1
        fi
        ;;
    esac
    if [ -z "$port" ] && [ -e "$root/sys/bus/xen/devices/console-1" ] && [ -c "$root/dev/hvc1" ]; then
        port=$root/dev/hvc1
    fi
}

say() { # one line, in one write
    printf '%s\n' "$1" >>"$port"
}

beat() { # in the background: reports progress as long as the package manager's output changes
    over=
    sleeping=
    # A child that has not started its program yet still has this trap, so only signal 9 ends it.
    trap 'over=yes; [ -z "$sleeping" ] || kill -9 "$sleeping"' TERM
    beats=0
    last_size=0
    while kill -0 $$; do
        sleep "$beat_s" &
        sleeping=$!
        [ -z "$over" ] || kill -9 "$sleeping" # the signal came before sleeping was set
        wait "$sleeping"
        [ -z "$over" ] || exit
        size=$(wc -c <"$log")
        if [ "$size" != "$last_size" ]; then
            last_size=$size
            beats=$((beats + 1))
            say "{\"event\": \"working\", \"beat\": $beats}"
        fi
    done
}

json_text() { # the last lines of standard input, as the inside of a JSON string
    tr '\r\t' '\n ' | tr -cd '\12\40-\176' | grep -v '^ *$' | tail -n 20 | cut -c 1-180 | sed 's/[\\"]/\\&/g' | {
        between=
        while IFS= read -r line; do
            printf '%s%s' "$between" "$line"
            between='\n'
        done
    }
}

# What to install

find_seed() { # copies soft_list from the seed, if there is one
    for device in $seeds; do
        [ -b "$device" ] || continue
        place=$(mktemp -d) || return
        if mount -r -t iso9660 "$device" "$place" 2>/dev/null; then
            found=no
            if [ -f "$place/saltern/soft_list" ]; then
                cp "$place/saltern/soft_list" "$state/soft_list" && found=yes
            fi
            umount "$place"
            [ "$found" = no ] || seeds=
        fi
        rmdir "$place"
    done
}

find_list() { # the drive may appear after the shell does
    mkdir -p "$state"
    tries=0
    find_seed
    while [ ! -e "$state/soft_list" ] && [ -n "$seeds" ] && [ "$tries" -lt 15 ]; do
        tries=$((tries + 1))
        sleep "$unit"
        find_seed
    done
    [ -e "$state/soft_list" ] || : >"$state/soft_list"
}

find_manager() { # sets manager
    for manager in apt-get dnf zypper pacman apk; do
        if command -v "$manager" >/dev/null 2>&1; then
            return 0
        fi
    done
    return 1
}

# The package managers. Names begin with a letter or a digit, so no name is taken for an option.

version_of() { # prints the version of a package; prints an empty string if it is not installed
    case $manager in
    apt-get)
        # shellcheck disable=SC2016 # dpkg-query reads the format, not the shell
        dpkg-query -W -f='${Status} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^[a-z]* ok installed //p' | head -n 1
        ;;
    dnf | zypper)
        if rpm -q "$1" >/dev/null 2>&1; then
            rpm -q --qf '%{VERSION}-%{RELEASE}\n' "$1" 2>/dev/null | head -n 1
        fi
        ;;
    pacman) pacman -Q "$1" 2>/dev/null | sed 's/^[^ ]* //' | head -n 1 ;;
    apk)
        if apk info -e "$1" >/dev/null 2>&1; then
            apk info -e -v "$1" 2>/dev/null | sed "s|^$1-||" | head -n 1
        fi
        ;;
    esac
}

apt() {
    apt-get -y -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confdef \
        -o Dpkg::Options::=--force-confold "$@"
}

whole() { # whether dpkg has no unfinished package after it has configured what it can
    dpkg --configure -a && [ -z "$(dpkg --audit)" ]
}

mend() { # repairs dpkg after a reset between a package and its dependencies, or while its files were unpacked
    apt --no-remove --fix-broken install
    # shellcheck disable=SC2016 # dpkg-query reads the format, not the shell
    torn=$(dpkg-query -W -f='${Status} ${binary:Package}\n' | sed -n 's/^[a-z]* reinstreq [a-z-]* //p')
    # shellcheck disable=SC2086 # one word for each package
    [ -z "$torn" ] || apt --reinstall install $torn
}

unlock() { # removes pacman's lock if a reset left it behind: a running pacman holds it open
    left=$(pacman-conf DBPath 2>/dev/null) || return 0
    # shellcheck disable=SC2010 # the targets of links, which a glob cannot match
    ls -l /proc/[0-9]*/fd 2>/dev/null | grep -qF " -> ${left}db.lck" || rm -f "${left}db.lck"
}

refresh() {
    case $manager in
    apt-get)
        apt -o APT::Update::Error-Mode=any update || return 1
        whole || mend || : # the installation reports the same error
        ;;
    dnf) dnf -y makecache ;;
    zypper) zypper --non-interactive refresh ;;
    pacman)
        unlock
        pacman -Sy --noconfirm
        ;;
    apk) apk update ;;
    esac
}

install() { # name, and a version or an empty string
    case $manager in
    apt-get) apt install "$1${2:+=$2}" ;;
    dnf) dnf -y install "$1${2:+-$2}" ;;
    zypper)
        case $2 in
        *'*'*) zypper --non-interactive install --auto-agree-with-licenses "$1" ;;
        *) zypper --non-interactive install --auto-agree-with-licenses "$1${2:+=$2}" ;;
        esac
        ;;
    pacman) pacman -S --noconfirm --needed "$1" ;;
    apk)
        case $2 in
        *'*') apk add "$1=~${2%\*}" ;;
        *) apk add "$1${2:+=$2}" ;;
        esac
        ;;
    esac
}

is_version() { # whether the version $1 matches $2
    # shellcheck disable=SC2254 # a pattern on purpose
    case $1 in
    $2 | $2-*) return 0 ;;
    esac
    # shellcheck disable=SC2254
    case ${1#*:} in
    $2 | $2-*) return 0 ;;
    esac
    return 1
}

never_will() { # whether another try is pointless: the manager has all package lists and does not know the package
    grep -qiE 'unable to locate package|no installation candidate|version .* was not found|no match for argument|unable to find a match|not found in package names|no provider of|target not found|no such package' "$log"
}

# The work

patiently() { # tries a command several times with growing pauses, because networks come late and fail
    pause=5
    for try in 1 2 3 4 5 6; do
        if "$@" >"$log" 2>&1 </dev/null; then
            return 0
        fi
        [ "$try" -lt 6 ] || return 1
        sleep $((pause * unit))
        pause=$((pause * 2))
        [ "$pause" -le 60 ] || pause=60
    done
}

have() { # whether a package is installed in the required version; sets version
    version=$(version_of "$1")
    [ -n "$version" ] && { [ -z "$2" ] || is_version "$version" "$2"; }
}

finish() { # completes what a reset interrupted; that may be more than the packages of the list
    [ -e "$state/begun" ] && [ "$manager" = apt-get ] || return 0
    if ! whole >"$log" 2>&1 </dev/null; then
        patiently refresh && refreshed=yes
    fi
}

get() { # installs a package; the log has the reason of a failure
    : >"$state/begun"
    if [ "$refreshed" = no ]; then
        patiently refresh || return 1
        refreshed=yes
    fi
    for try in 1 2 3; do
        if install "$1" "$2" >"$log" 2>&1 </dev/null; then
            have "$1" "$2" && return 0
            if [ -z "$2" ]; then
                return 0 # a virtual package has no version of its own
            fi
            echo "$1 has the version ${version:-(none)}, which is not $2." >>"$log"
            return 1
        fi
        if never_will || [ "$try" -eq 3 ]; then
            return 1
        fi
        sleep $((5 * unit))
        cp "$log" "$log.first"
        patiently refresh || { cat "$log.first" "$log" >"$log.both" && mv "$log.both" "$log"; return 1; }
    done
}

provide() { # one entry
    package=${1%%=*}
    wanted=
    [ "$package" = "$1" ] || wanted=${1#*=}
    if ! have "$package" "$wanted"; then
        say "{\"event\": \"installing\", \"name\": \"$1\"}"
        if ! get "$package" "$wanted"; then
            say "{\"event\": \"failed\", \"name\": \"$1\", \"tail\": \"$(json_text <"$log")\"}"
            return 1
        fi
    fi
    shown=$(printf '%s' "$version" | json_text)
    say "{\"event\": \"installed\", \"name\": \"$1\", \"version\": \"$shown\"}"
}

provide_all() {
    if [ -s "$state/soft_list" ] && ! find_manager; then
        say '{"event": "failed", "tail": "this guest has no package manager that the agent supports: apt, dnf, zypper, pacman, apk"}'
        return 1
    fi
    finish
    while IFS= read -r entry <&3 || [ -n "$entry" ]; do
        case $entry in
        '') continue ;;
        [!A-Za-z0-9]* | *[!A-Za-z0-9.+_:~=*-]*)
            say '{"event": "failed", "tail": "soft_list has an entry that is not a package name"}'
            return 1
            ;;
        esac
        provide "$entry" || return 1
    done 3<"$state/soft_list"
}

alone() { # makes the lock: an image may have the agent, and the seed brings it too
    if ! mkdir "$lock" 2>/dev/null; then
        kill -0 "$(cat "$lock/pid" 2>/dev/null)" 2>/dev/null && return 1
    fi
    echo $$ >"$lock/pid"
}

main() {
    find_port || exit 0 # not a VM of Saltern
    alone || exit 0
    log=$(mktemp) || exit 1
    beat </dev/null >/dev/null 2>&1 &
    beating=$!
    trap 'kill "$beating"; rm -rf "$log" "$log.first" "$log.both" "$lock"' EXIT
    sync # this script and the other files of the seed survive a reset from now on
    say '' # ends a line that an interrupted agent began
    say '{"event": "up"}'
    find_list
    if provide_all; then
        [ "$refreshed" = no ] || [ "$manager" != apt-get ] || apt-get clean
        rm -rf "$state"
        case $0 in
        /var/lib/cloud/*) rm -f "$0" ;; # so that the next boot does not run it
        esac
        sync
        say '{"event": "done"}'
    fi
}

main
