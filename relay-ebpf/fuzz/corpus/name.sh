#!/bin/sh
# Keeps, of the inputs in a folder, the smallest for each outcome under that outcome's name.
# Usage: corpus/name.sh FOLDER, in relay-ebpf/fuzz, after a build.
set -eu
found=${1:?a folder of inputs, such as found}
binary=$(ls -t target/*/release/process | head -n 1)
corpus=corpus/process
find "$found" -type f -size -2k -printf '%s %p\n' | sort -n | while read -r size input; do
    TELL=1 "$binary" "$input" 2>&1 | grep -E '^(uplink|downlink) [a-z_]+$' | sort -u | tr ' ' _ | while read -r name; do
        kept="$corpus/$name"
        if [ ! -e "$kept" ] || [ "$(stat -c %s "$kept")" -gt "$size" ]; then
            cp "$input" "$kept"
            echo "$name: $size bytes"
        fi
    done
done
