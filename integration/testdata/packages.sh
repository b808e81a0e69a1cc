# Makes what package managers fetch, below /srv, as their own formats want it.
# Run by root in a sandbox; nothing of it comes from elsewhere.
set -eu
mkdir -p /srv/deb /srv/simple/hello-pip /srv/npm /srv/crates /srv/index

# A Debian package that needs another, with what only a root can unpack: other
# owners, set-user-ID and set-group-ID files, a user made by a script.
deb() { # NAME DEPENDS, of the tree in $1
	mkdir -p "/tmp/$1/DEBIAN"
	printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: a test <test@localhost>\nDescription: a test\n' "$1" >"/tmp/$1/DEBIAN/control"
	[ -z "$2" ] || echo "Depends: $2" >>"/tmp/$1/DEBIAN/control"
	dpkg-deb --build "/tmp/$1" "/srv/deb/$1.deb" >/dev/null
	{
		dpkg-deb -f "/srv/deb/$1.deb"
		echo "Filename: ./$1.deb"
		echo "Size: $(stat -c %s "/srv/deb/$1.deb")"
		echo "SHA256: $(sha256sum "/srv/deb/$1.deb" | cut -d' ' -f1)"
		echo
	} >>/srv/deb/Packages
}
mkdir -p /tmp/hello-lib/usr/lib/hello /tmp/hello-lib/var/lib/hello /tmp/hello-deb/usr/bin /tmp/hello-deb/DEBIAN
cp /usr/bin/id /tmp/hello-lib/usr/lib/hello/su
chmod 4755 /tmp/hello-lib/usr/lib/hello/su
cp /usr/bin/id /tmp/hello-lib/usr/lib/hello/mail
chgrp mail /tmp/hello-lib/usr/lib/hello/mail
chmod 2755 /tmp/hello-lib/usr/lib/hello/mail
chown games:games /tmp/hello-lib/var/lib/hello
chmod 1770 /tmp/hello-lib/var/lib/hello
printf '#!/bin/sh\necho "a deb says hello"\n' >/tmp/hello-deb/usr/bin/hello-deb
printf '#!/bin/sh\nset -e\nuseradd --system --no-create-home hello\nchown hello /var/lib/hello\n' >/tmp/hello-deb/DEBIAN/postinst
chmod 755 /tmp/hello-deb/usr/bin/hello-deb /tmp/hello-deb/DEBIAN/postinst
deb hello-lib ''
deb hello-deb hello-lib

# A wheel in a simple index (PEP 427, PEP 503).
python3 - <<'EOF'
import zipfile
files = {
    "hello_pip.py": "def main():\n    print('a wheel says hello')\n",
    "hello_pip-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hello-pip\nVersion: 1.0\n",
    "hello_pip-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "hello_pip-1.0.dist-info/entry_points.txt": "[console_scripts]\nhello-pip = hello_pip:main\n",
}
files["hello_pip-1.0.dist-info/RECORD"] = "".join(f + ",,\n" for f in files) + "hello_pip-1.0.dist-info/RECORD,,\n"
with zipfile.ZipFile("/srv/simple/hello-pip/hello_pip-1.0-py3-none-any.whl", "w") as z:
    for name, text in files.items():
        z.writestr(name, text)
open("/srv/simple/hello-pip/index.html", "w").write('<a href="hello_pip-1.0-py3-none-any.whl">hello_pip-1.0-py3-none-any.whl</a>')
EOF

# An npm package with an install script, and a project that locks it.
mkdir -p /tmp/npm/package /opt/app
cat >/tmp/npm/package/package.json <<'EOF'
{"name": "hello-npm", "version": "1.0.0", "bin": {"hello-npm": "hello.js"}, "scripts": {"install": "id -u >built"}}
EOF
printf '#!/usr/bin/env node\nconsole.log("a tarball says hello, built by " + require("fs").readFileSync(__dirname + "/built", "utf8").trim())\n' >/tmp/npm/package/hello.js
tar -C /tmp/npm -czf /srv/npm/hello-npm-1.0.0.tgz package
sum=$(openssl dgst -sha512 -binary /srv/npm/hello-npm-1.0.0.tgz 2>/dev/null | base64 -w0 ||
	python3 -c 'import base64,hashlib;print(base64.b64encode(hashlib.sha512(open("/srv/npm/hello-npm-1.0.0.tgz","rb").read()).digest()).decode())')
echo '{"name": "app", "version": "1.0.0", "dependencies": {"hello-npm": "1.0.0"}}' >/opt/app/package.json
cat >/opt/app/package-lock.json <<EOF
{"name": "app", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {
  "": {"name": "app", "version": "1.0.0", "dependencies": {"hello-npm": "1.0.0"}},
  "node_modules/hello-npm": {"version": "1.0.0", "resolved": "http://127.0.0.1:8000/npm/hello-npm-1.0.0.tgz",
    "integrity": "sha512-$sum", "hasInstallScript": true, "bin": {"hello-npm": "hello.js"}}}}
EOF

# A crate in a registry whose index is a git repository (the Cargo book,
# "Running a Registry"), and a program that needs it.
mkdir -p /tmp/crate/hello-crate-1.0.0/src /srv/index/he/ll /opt/tool/src /opt/tool/.cargo
printf '[package]\nname = "hello-crate"\nversion = "1.0.0"\nedition = "2018"\n' >/tmp/crate/hello-crate-1.0.0/Cargo.toml
echo 'pub fn hello() -> &'"'"'static str { "a crate says hello" }' >/tmp/crate/hello-crate-1.0.0/src/lib.rs
tar -C /tmp/crate -czf /srv/crates/hello-crate-1.0.0.crate hello-crate-1.0.0
echo '{"dl": "http://127.0.0.1:8000/crates/{crate}-{version}.crate"}' >/srv/index/config.json
echo '{"name": "hello-crate", "vers": "1.0.0", "deps": [], "features": {}, "yanked": false, "cksum": "'"$(sha256sum /srv/crates/hello-crate-1.0.0.crate | cut -d' ' -f1)"'"}' >/srv/index/he/ll/hello-crate
git -C /srv/index init -q
git -C /srv/index add .
git -C /srv/index -c user.name=test -c user.email=test@localhost commit -qm index
printf '[registries.local]\nindex = "file:///srv/index"\n' >/opt/tool/.cargo/config.toml
printf '[package]\nname = "tool"\nversion = "1.0.0"\nedition = "2018"\n[dependencies]\nhello-crate = { version = "1", registry = "local" }\n' >/opt/tool/Cargo.toml
echo 'fn main() { println!("{}", hello_crate::hello()); }' >/opt/tool/src/main.rs
