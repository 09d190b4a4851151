# Interactive shells: nobody else reads what an administrator makes; a line that starts with a space is not kept, so a
# secret need not enter the history; history entries carry their time.
umask 027
HISTCONTROL=ignoreboth
HISTTIMEFORMAT='%F %T '
export HISTCONTROL HISTTIMEFORMAT
