package presencectl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mqtt-presence/presence/libs/backup"
)

func (a *app) restoreCommand() *cobra.Command {
	var dir string
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "restore FILE",
		GroupID: groupAdmin,
		Short:   "Make a materializer's store of a backup",
		Long: `Reads the backup to its end, and if it is as it was written fills a data-dir with it, whole or not at all. The directory must be empty or absent,
and no materializer may be running on it. Nobody is asked: it needs neither Kafka nor a service.

A materializer that starts with the directory goes on from the backup: it reads what was published since, and folds what came since. It
refuses if its Kafka is not the one that the backup is of. Start it as soon as possible: once Kafka has deleted the events that follow the backup, the
backup is too old.`,
		Example: `  presencectl restore presence-a.tar --dry-run
  presencectl restore presence-a.tar --data-dir /var/lib/presence/materializer`,
		Args: a.oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(a.checkOutput(), a.resolve()); err != nil {
				return err
			}
			if dir == "" && !dryRun {
				return &usageError{errors.New("--data-dir: name the materializer's directory, or only look at the backup with --dry-run"), cmd.CommandPath()}
			}
			m, err := restore(cmd.Context(), args[0], dir, dryRun)
			if err != nil {
				return err
			}
			if err := a.printManifest(args[0], m); err != nil {
				return err
			}
			if dryRun {
				a.note("the backup is as it was written; nothing was restored")
			} else {
				a.note("restored to %s; run the materializer as a user who may write there", dir)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "directory to fill, the materializer's --data-dir (of 'presence': DATA-DIR/state)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "verify the backup and show what it is")
	return cmd
}

func restore(ctx context.Context, file, dir string, dryRun bool) (*backup.Manifest, error) {
	if !dryRun {
		m, err := backup.Restore(ctx, file, dir)
		if err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
		return m, nil
	}
	m, err := backup.Verify(ctx, file)
	if err == nil && dir != "" {
		err = backup.CheckEmpty(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return m, nil
}
