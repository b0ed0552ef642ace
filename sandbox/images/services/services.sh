# Runs both services and ends, to be restarted, as soon as one of them does.
python3 /usr/local/lib/site/hub.py --root /srv --port 80 --tls-port 443 &
web=$!
docker-registry serve /etc/docker/registry/config.yml &
registry=$!
trap 'kill $web $registry; exit 0' TERM INT
while kill -0 $web 2>/dev/null && kill -0 $registry 2>/dev/null; do
    sleep 2 &
    wait $!
done
kill $web $registry 2>/dev/null
exit 1
