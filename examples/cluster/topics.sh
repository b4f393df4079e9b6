#!/bin/sh
# A broker's first start: the topics that it begins with. Later on: mqadmin updateTopic.
set -e
mkdir -p "$1/config"
[ -e "$1/config/topics.json" ] || cp topics.json "$1/config/topics.json"
