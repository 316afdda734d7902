# One service, FROM scratch. build-services.sh writes the service's name for @SERVICE@ and puts the context
# together: folder "root" belongs to root, folder "owned" to the user that the service runs as.
FROM scratch
COPY root/ /
COPY --chown=65532:65532 owned/ /
USER 65532:65532
# A service that keeps nothing knows no --data-dir, so no variable names the folder; it is the working folder.
WORKDIR /data
VOLUME ["/data"]
ENTRYPOINT ["/@SERVICE@"]
