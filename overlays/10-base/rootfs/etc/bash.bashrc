# Every interactive bash, login shell or not. What others may read of new files is said first, for shells without a prompt
# too.
umask 027
[ -z "${PS1-}" ] && return
shopt -s checkwinsize histappend
PS1='\u@\h:\w\$ '
