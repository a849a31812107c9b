#!/usr/bin/env bash
# Random passwords for compose.yaml, each in a file of docker/secrets. None is overwritten: a
# database keeps the password that it was made with.
#
# The folder is yours alone. Its files are readable to all, since a container's user, who is
# somebody else, reads them through the mount; nobody else gets into the folder.
set -euo pipefail
cd "$(dirname "$0")"

folder=${1:-secrets}
mkdir -p -- "$folder"
chmod 700 -- "$folder"
umask 022

random() { # characters
  # Letters and digits only: they need no quoting in any file or URL.
  LC_ALL=C tr -dc 'A-Za-z0-9' < <(head -c 4096 /dev/urandom) | head -c "$1"
}

keep() { # name, value
  local file=$folder/$1
  if [ -e "$file" ]; then
    echo "$file is there already" >&2
    return
  fi
  printf '%s\n' "$2" > "$file.new"
  chmod 444 -- "$file.new"
  mv -- "$file.new" "$file"
}

for name in postgres_password optuna_password mlflow_db_password mlflow_admin_password \
  mlflow_user_password mlflow_flask_key ray_token; do
  keep "$name" "$(random 40)"
done

# The store's keys stand in three files: its own list, and the two users' for boto3. They belong
# together, so they are made together or not at all.
there=0
for name in s3_identities.json s3_admin s3_mlflow; do
  [ ! -e "$folder/$name" ] || there=$((there + 1))
done
case $there in
  3) echo "$folder/s3_* are there already" >&2 ;;
  0)
    admin_id=$(random 20) admin_key=$(random 40) mlflow_id=$(random 20) mlflow_key=$(random 40)
    for user in admin mlflow; do
      id=${user}_id key=${user}_key
      keep "s3_$user" "[default]
aws_access_key_id = ${!id}
aws_secret_access_key = ${!key}"
    done
    bucket=${CARFT_BUCKET:-mlflow}
    keep s3_identities.json "{\"identities\": [
  {\"name\": \"admin\", \"credentials\": [{\"accessKey\": \"$admin_id\", \"secretKey\": \"$admin_key\"}],
   \"actions\": [\"Admin\", \"Read\", \"List\", \"Tagging\", \"Write\"]},
  {\"name\": \"mlflow\", \"credentials\": [{\"accessKey\": \"$mlflow_id\", \"secretKey\": \"$mlflow_key\"}],
   \"actions\": [\"Read:$bucket\", \"List:$bucket\", \"Tagging:$bucket\", \"Write:$bucket\"]}
]}"
    ;;
  *)
    echo "$folder has some of s3_identities.json, s3_admin, s3_mlflow: remove or restore them" >&2
    exit 2
    ;;
esac
