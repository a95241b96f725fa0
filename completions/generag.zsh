#compdef generag

_generag_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _GENERAG_COMPLETE=complete_zsh generag)
}

compdef _generag_completion generag
