# shellcheck shell=sh
# Interactive shells: nobody else reads what an administrator makes; a line that starts with a space is not kept, so a
# secret need not enter the history; history entries carry their time; a shell that is left alone ends.
umask 027
# shellcheck disable=SC3045 # dash has it too
ulimit -c 0
HISTCONTROL=ignoreboth
HISTTIMEFORMAT='%F %T '
export HISTCONTROL HISTTIMEFORMAT
# Only a variable that is not read-only yet can be unset.
if [ -n "${BASH_VERSION-}" ] && (unset TMOUT) 2>/dev/null; then
    # shellcheck disable=SC3044 # only bash comes here
    declare -xr TMOUT=900
fi
