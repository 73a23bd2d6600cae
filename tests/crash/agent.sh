#!/bin/sh
# The agent of the crash tests where there is no C compiler; see agent.c. /proc/uptime is its clock.
log=$1 locks=$2 results=$3 task=$WATCHER_TASK_ID attempt=$WATCHER_ATTEMPT mark=$WATCHER_MARK
now() { read -r up _ < /proc/uptime; ns=${up%.*}${up#*.}0000000; }
visible=0 overlap=0 code=0
[ -e "$results/$task.json" ] && visible=1
exec 9>> "$locks/$task.lock"
flock -n 9 || overlap=1
now
printf 'S %s %s %d %s %s %d %d\n' "$task" "$attempt" $$ "$ns" "$mark" $visible $overlap >> "$log"
IFS= read -r prompt
set -f
set -- $prompt
while [ $# -gt 0 ]; do
    case $1 in
        sleep) sleep "$(printf '%d.%03d' $(($2 / 1000)) $(($2 % 1000)))"; shift ;;
        fail) [ "$attempt" -le "$2" ] && code=1; shift ;;
        say) head -c "$2" /dev/zero | tr '\0' x || code=1; shift ;;
        escape) setsid sleep 600 & ;;
        deaf) trap '' TERM ;;
        gate) until [ -e "$locks/$2" ]; do sleep 0.01; done; shift ;;
        kill-worker) (set -C; : > "$locks/$task.killer") 2> /dev/null && kill -9 $PPID ;;
        kill-workers) kill -9 $PPID ;;
    esac
    shift
done
printf xxx || code=1
now
printf 'E %s %s %d %s %s %d\n' "$task" "$attempt" $$ "$ns" "$mark" $code >> "$log"
exit $code
