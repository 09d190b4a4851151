#!/bin/sh
# Starts a second set of services beside the image's own, as Debian would run them: for `nox -s bench -- hardening`, on a
# throw-away machine. Debian's nginx.conf and unit come out of its package; the application server has the unit that its
# documentation shows, because Debian has none for an application of one's own. @HOME@ and @PORT@ are filled in.
set -eu
name=$(cut -d' ' -f1 /run/golden/names)
grep -q " $name$" /etc/hosts || echo "127.0.0.1 $name" >>/etc/hosts
find /etc/nginx -type f -exec sed -i -E 's/rate=[0-9]+r\/[sm]/rate=1000000r\/s/; s/(limit_conn +[a-z_]+) +[0-9]+/\1 60000/' {} +
systemctl reload nginx.service

pg_createcluster --createclusterconf=/dev/null --port 5433 17 stock -- --auth-local=peer >/dev/null
cat >/etc/postgresql/17/stock/pg_hba.conf <<'EOF'
local all postgres peer
local all all peer map=stock
EOF
echo 'stock gunicorn app' >>/etc/postgresql/17/stock/pg_ident.conf
systemctl start postgresql@17-stock.service
su -s /bin/sh postgres -c '
    psql -qX -h /run/postgresql -p 5433 -d postgres -c "create role app login" -c "create role app_owner" -c "create database app owner app_owner"' >/dev/null
su -s /bin/sh golden-backup -c '
    pg_dump -h /run/postgresql -p 5432 -U app_owner app' | su -s /bin/sh postgres -c '
    psql -qX -h /run/postgresql -p 5433 -d app' >/dev/null

install -d -o gunicorn -g www-data -m 0750 /run/stock
cat >/etc/systemd/system/stock-app.socket <<'EOF'
[Socket]
ListenStream=/run/stock/app.sock
SocketUser=www-data
EOF
environment=$(systemctl show gunicorn.service --property=EnvironmentFiles --value | sed -n 's/^\([^ ]*\) .*/EnvironmentFile=-\1/p')
cat >/etc/systemd/system/stock-app.service <<EOF
[Unit]
Requires=stock-app.socket
[Service]
Type=notify
NotifyAccess=main
User=gunicorn
Group=gunicorn
RuntimeDirectory=stock-app
WorkingDirectory=$(systemctl show gunicorn.service --property=WorkingDirectory --value)
$environment
$(systemctl show gunicorn.service --property=Environment --value | tr ' ' '\n' | sed 's/^/Environment=/')
Environment=PGPORT=5433
LoadCredential=app.secret-key:/etc/credstore/app.secret-key
ExecStart=$(systemctl cat gunicorn.service | sed -n 's/^ExecStart=\(..*\)/\1/p' | tail -1)
EOF

mkdir -p /etc/stock-nginx/conf.d /etc/stock-nginx/sites-enabled /etc/stock-nginx/modules-enabled
cp @HOME@/stock/etc/nginx/mime.types @HOME@/stock/etc/nginx/proxy_params /etc/stock-nginx/
sed -e 's|/etc/nginx/|/etc/stock-nginx/|; s|/run/nginx.pid|/run/stock-nginx.pid|; s|/var/log/nginx/|/var/log/stock-nginx-|' \
    @HOME@/stock/etc/nginx/nginx.conf >/etc/stock-nginx/nginx.conf
cp /etc/ssl/private/app.key /etc/stock-nginx/app.key
cat >/etc/stock-nginx/sites-enabled/app <<EOF
server {
    listen 127.0.0.1:@PORT@ ssl;
    http2 on;
    server_name $name;
    ssl_certificate /etc/ssl/certs/app.pem;
    ssl_certificate_key /etc/stock-nginx/app.key;
    location /static/ { root /var/www; }
    location / {
        include /etc/stock-nginx/proxy_params;
        proxy_pass http://unix:/run/stock/app.sock;
    }
}
EOF
sed -e 's|^PIDFile=.*|PIDFile=/run/stock-nginx.pid|; s|/run/nginx.pid|/run/stock-nginx.pid|; s|/usr/sbin/nginx |&-c /etc/stock-nginx/nginx.conf |' \
    @HOME@/stock/usr/lib/systemd/system/nginx.service >/etc/systemd/system/stock-nginx.service
systemctl daemon-reload
systemctl start stock-app.socket stock-app.service stock-nginx.service
