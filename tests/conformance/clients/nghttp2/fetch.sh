# Debian's nghttp2-client with the libraries that it lacks here, unpacked in this folder: nothing is installed, no root needed.
set -eu
apt="apt-get -qq -o Dir::State::Lists=$PWD/lists -o Dir::Cache=$PWD/cache -o APT::Sandbox::User="
mkdir -p lists/partial cache/archives/partial
$apt update
packages=$($apt --simulate --no-install-recommends install nghttp2-client | sed -n 's/^Inst \([^ ]*\).*/\1/p')
$apt download nghttp2-client $packages
for package in *.deb; do
    dpkg-deb -x "$package" .
done
rm -rf lists cache ./*.deb
