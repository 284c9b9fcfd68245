#!/bin/sh
# Run as root while the container is built, with the options of the feature as variables.
set -eu
name=nats-webhook-relay
version=${VERSION:-0.1.0}
# For tests.
downloads=${DOWNLOADS:-https://github.com/wunderwerkio/$name/releases/download/v$version}
prefix=${PREFIX:-/usr/local}

case $(uname -m) in
x86_64) target=x86_64-unknown-linux-musl ;;
aarch64 | arm64) target=aarch64-unknown-linux-musl ;;
*)
    echo "$name: there is no release for $(uname -m)" >&2
    exit 1
    ;;
esac

if ! command -v curl >/dev/null; then
    if command -v apt-get >/dev/null; then
        apt-get update
        apt-get install --yes --no-install-recommends ca-certificates curl
    elif command -v apk >/dev/null; then
        apk add --no-cache ca-certificates curl
    else
        echo "$name: install curl" >&2
        exit 1
    fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
folder=$name-$version-$target
curl --fail --silent --show-error --location --retry 3 \
    --remote-name "$downloads/$folder.tar.gz" --remote-name "$downloads/SHA256SUMS"
grep " $folder.tar.gz\$" SHA256SUMS | sha256sum -c -
tar -xzf "$folder.tar.gz"
mkdir -p "$prefix/bin" "$prefix/share/$name" "$prefix/share/man/man1"
install -m 755 "$folder/$name" "$prefix/bin/$name"
install -m 644 "$folder"/man/*.1 "$prefix/share/man/man1/"

# Run in the workspace by the user of the container, each time the container starts.
cat >"$prefix/share/$name/start" <<END
#!/bin/sh
[ "${START:-true}" = true ] || exit 0
setsid "$prefix/bin/$name" >/tmp/$name.log 2>&1 </dev/null &
END
chmod 755 "$prefix/share/$name/start"
