#!/bin/sh
# The first process of the vmferry test guest. It speaks on ttyS0 and is told what to do by the kernel's command line:
#
#   vmferry.ip=10.77.0.10/24      give eth0 this address
#   vmferry.gateway=10.77.0.1     and this default route
#   vmferry.memcached=64          run memcached with so many MiB of items, on port 11211 of every address
#   vmferry.redis=64              run redis with so many MiB of items, on port 6379 (layer redis)
#   vmferry.database=64           run PostgreSQL with so many MiB of buffers, on port 5432 (layer database)
#   vmferry.work=cpu:40           one load that tells on port 7121 how far it has come: compute for 40 % of the time;
#                read:64          read 64 MiB of memory as fast as it goes, checking every page;
#                write:64:200     as below;
#                allocate:4       allocate, touch and free blocks of 4 KiB, again and again;
#                gzip:16          compress 16 MiB of text, again and again; also bzip2:16;
#                compile          compile C files, again and again (layer compile);
#                disk-read        read /dev/vda from beginning to end, again and again;
#                net-send         stream bytes to whoever connects to that port; net-receive: take them
#   vmferry.load=write:64:200     write 64 MiB of memory at 200 MiB/s, checking every page all the while;
#                disk:32:10       write and read back the first 32 MiB of /dev/vda, 10 MiB/s together (without: as fast as it goes),
#                                 and check what was read;
#                churn:32         make and remove files in memory, up to 32 MiB of them, and check what they hold;
#                hold:1024        write 1024 MiB of memory before anything else starts, and keep it, hardly touched;
#                used:1024        write 1024 MiB of memory and give it back, before anything else starts;
#                idle             nothing; several loads are joined with a comma
#   vmferry.agent                 run the agent, which says what pages are used for
#   vmferry.selfcheck             print `alive N` every second
#   vmferry.run_s=30              power off after that many seconds (without it the guest runs until it is stopped)
#
# `vmferry-guest: ready` is printed once all of that has been started and servers listen.

export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
exec </dev/null >/dev/ttyS0 2>&1

while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "vmferry-guest: module $module does not load"
done </lib/modules/order

ip='' gateway='' memcached='' redis='' database='' load='' work='' selfcheck='' run_s='' agent=''
for word in $(cat /proc/cmdline); do
    case $word in
        vmferry.ip=*) ip=${word#*=} ;;
        vmferry.gateway=*) gateway=${word#*=} ;;
        vmferry.memcached=*) memcached=${word#*=} ;;
        vmferry.redis=*) redis=${word#*=} ;;
        vmferry.database=*) database=${word#*=} ;;
        vmferry.load=*) load=${word#*=} ;;
        vmferry.work=*) work=${word#*=} ;;
        vmferry.agent) agent=1 ;;
        vmferry.selfcheck) selfcheck=1 ;;
        vmferry.run_s=*) run_s=${word#*=} ;;
        vmferry.*) echo "vmferry-guest: unknown parameter $word" ;;
    esac
done

ip link set lo up
if [ -n "$ip" ]; then
    ip addr add "$ip" dev eth0 && ip link set eth0 up || echo "vmferry-guest: eth0 cannot have $ip"
fi
if [ -n "$gateway" ]; then
    ip route add default via "$gateway" || echo "vmferry-guest: no route by $gateway"
fi

# Waits for the server $1 that was just started to listen at port $2, in hexadecimal digits; state 0A is listening.
await() {
    until grep -q ":$2 00000000:0000 0A" /proc/net/tcp; do
        usleep 20000
        kill -0 $! 2>/dev/null || { echo "vmferry-guest: $1 does not start"; break; }
    done
}
if [ -n "$memcached" ]; then
    memcached -u root -m "$memcached" -t 2 -l 0.0.0.0 &
    await memcached 2BCB
fi
if [ -n "$redis" ]; then
    # Nothing is kept on a disk, and where memory is full that is an error, not a loss.
    redis-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly no \
        --maxmemory "${redis}mb" --maxmemory-policy noeviction --loglevel warning &
    await redis 18EB
fi
if [ -n "$database" ]; then
    # It does not run as root, and its folder may be nobody else's.
    data=/var/lib/postgresql
    chown -R postgres "$data" && chmod -R go= "$data"
    su -s /bin/sh postgres -c "exec postgres -D $data -c shared_buffers=${database}MB" &
    await PostgreSQL 1538
fi

if [ -n "$agent" ]; then
    vmferry-agent &
fi

# Starts the load $1; further words go to it.
start_load() {
    kind=${1%%:*} first='' second=''
    case $1 in
        *:*:*) first=${1#*:} second=${first#*:} first=${first%%:*} ;;
        *:*) first=${1#*:} ;;
    esac
    shift
    case $kind in
        read) guest-load read --mib "${first:-64}" "$@" & ;;
        write) guest-load write --mib "${first:-64}" --rate-mib-s "${second:-100}" "$@" & ;;
        disk) guest-load disk --device /dev/vda --mib "${first:-32}" --rate-mib-s "${second:-0}" & ;;
        churn) guest-load churn --folder /tmp --mib "${first:-32}" & ;;
        used) guest-load used --mib "${first:-64}" ;;
        hold)
            guest-load hold --mib "${first:-64}" --held /tmp/held &
            until [ -e /tmp/held ]; do
                usleep 20000
                kill -0 $! 2>/dev/null || { echo "vmferry-guest: hold does not start"; break; }
            done
            ;;
        allocate) guest-load allocate --kib "${first:-4}" "$@" & ;;
        cpu) guest-load cpu --percent "${first:-100}" "$@" & ;;
        gzip | bzip2) guest-load "$kind" --mib "${first:-16}" --folder /tmp "$@" & ;;
        compile) guest-load compile --sources /usr/src/build --folder /tmp "$@" & ;;
        disk-read) guest-load disk-read --device /dev/vda "$@" & ;;
        net-send | net-receive) guest-load "$kind" --port 7121 & ;;
        idle) ;;
        *) echo "vmferry-guest: unknown load $kind" ;;
    esac
}
for each in $(echo "$load" | tr , ' '); do
    start_load "$each"
done
if [ -n "$work" ]; then
    start_load "$work" --progress 7121
fi

heartbeat() {
    beat=0
    while :; do
        echo "alive $beat"
        beat=$((beat + 1))
        sleep 1
    done
}
if [ -n "$selfcheck" ]; then
    heartbeat &
fi

echo 'vmferry-guest: ready'

if [ -n "$run_s" ]; then
    sleep "$run_s"
    echo 'vmferry-guest: done'
    poweroff -f
fi
# The first process may not end, and takes in those whose parents did.
while :; do
    wait
    sleep 3600
done
