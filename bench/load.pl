# What bench/files.py runs in a container, in the floor's guest and on the host: the same work on a directory of files,
# a line "NAME SECONDS" for each part. Arguments: DIRECTORY FILES MIB; files/ and big are there already.
use strict;
use Fcntl;

my ($top, $count, $mib) = @ARGV;
chdir $top or die "$top: $!";
$| = 1;
srand 7;

# clock_gettime(CLOCK_MONOTONIC) of x86-64: perl-base has no Time::HiRes
sub now {
    my $spec = pack 'qq', 0, 0;
    syscall 228, 1, $spec;
    my ($seconds, $nanoseconds) = unpack 'qq', $spec;
    return $seconds + $nanoseconds / 1e9;
}
sub part {
    my ($name, $work) = @_;
    my $begun = now();
    $work->();
    printf "%s %.6f\n", $name, now() - $begun;
}
sub put {
    my ($path, $data) = @_;
    open my $file, '>', $path or die "$path: $!";
    syswrite $file, $data;
    close $file or die "$path: $!";
}
sub get {
    my ($path) = @_;
    open my $file, '<', $path or die "$path: $!";
    sysread $file, my $data, 1 << 20;
    return $data;
}

my @found;
part 'walk', sub {
    for my $directory (map { sprintf 'files/%02d', $_ } 0 .. 49) {
        opendir my $handle, $directory or die "$directory: $!";
        push @found, map { "$directory/$_" } grep { !/^\./ } readdir $handle;
    }
    @found == $count or die scalar(@found) . " files";
};
part 'stat', sub { lstat $_ or die "$_: $!" for @found };
part 'read', sub { length get($_) or die "$_ is empty" for @found };
# as `git status` of a clean tree: its index, then each file's status once more, and each directory's names
part 'git-status', sub {
    get('index');
    lstat $_ or die "$_: $!" for @found;
    for my $directory (map { sprintf 'files/%02d', $_ } 0 .. 49) { opendir my $handle, $directory; my @names = readdir $handle }
    put('index.lock', 'x' x 400000);
    rename 'index.lock', 'index' or die "index: $!";
};
mkdir 'new' or die "new: $!";
part 'create', sub { put("new/$_", 'x' x 1000) for 1 .. $count };
part 'remove', sub { unlink "new/$_" or die "new/$_: $!" for 1 .. $count };
# as `pip install`: packages of 20 modules, each written under another name, renamed, read again, compiled beside
part 'pip-install', sub {
    for my $package (1 .. $count / 200) {
        mkdir "new/p$package";
        mkdir "new/p$package/__pycache__";
        for my $module (1 .. 20) {
            my $path = "new/p$package/m$module";
            put("$path.tmp", 'x' x 4000);
            chmod 0644, "$path.tmp";
            rename "$path.tmp", "$path.py" or die "$path: $!";
            get("$path.py");
            put("new/p$package/__pycache__/m$module.pyc", 'y' x 3000);
        }
    }
};
my $block = 'z' x (1 << 20);
part 'write', sub {
    open my $file, '>', 'new/big' or die "new/big: $!";
    syswrite $file, $block for 1 .. $mib;
    close $file or die "new/big: $!";
};
part 'read-big', sub {
    open my $file, '<', 'big' or die "big: $!";
    1 while sysread $file, my $data, 1 << 20;
};
my $blocks = $mib * 256;
part 'read-4k', sub {
    open my $file, '<', 'other' or die "other: $!";
    for (1 .. 4000) { sysseek $file, 4096 * int(rand $blocks), 0; sysread $file, my $data, 4096 }
};
part 'write-4k', sub {
    sysopen my $file, 'new/big', O_RDWR or die "new/big: $!";
    for (1 .. 4000) { sysseek $file, 4096 * int(rand $blocks), 0; syswrite $file, $block, 4096 }
    close $file;
};
